"""Measuring videos: a pixel reader that knows nothing of the model, and the bundled model's report."""
