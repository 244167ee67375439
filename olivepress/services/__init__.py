"""Running the services: all of them with embedded parts (`stack`), and the two programs that are not ours."""
