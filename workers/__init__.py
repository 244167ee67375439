"""The worker service: takes steps from the queue and runs each in a child of its own."""
