"""timm models: built, tapped at each layer, saved and loaded."""
