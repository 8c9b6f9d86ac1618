"""The engines that are compared: which there are, how each is opened, and how they take turns."""
