"""Use of encoders on new files. Nothing here, nor in what it uses, imports the training code."""
