"""Images: files ↔ pixels ↔ [−1, 1]. Only what is in here knows pixels, colour and image formats."""
