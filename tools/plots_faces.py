from common.plots import draw_faces  # noqa: F401
