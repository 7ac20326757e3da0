"""Images, their classes, and the split into seen and unseen."""
