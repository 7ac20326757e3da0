"""What a run will take, told before it starts: images, bytes, memory, forward passes, time."""
