"""Build, save and load timm models, and read the output of each layer."""
