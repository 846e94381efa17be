"""Facial expression recognition without PyTorch: pictures in, answers out.

    from auto_fernet import Predictor
    Predictor().detect_emotions("photo.jpg")

Needs numpy, pillow and onnxruntime, and OpenCV to find faces.
"""

from auto_fernet.pictures import PictureError, centre_face, open_picture
from auto_fernet.predictor import Predictor

__all__ = ["PictureError", "Predictor", "centre_face", "open_picture"]
