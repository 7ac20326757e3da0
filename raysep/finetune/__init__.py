"""Fine-tuning on the seen classes: planning, training and resuming single trials."""
