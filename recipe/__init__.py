"""What a training is made of: schedules, loss, average of the weights, mixed images, views."""
