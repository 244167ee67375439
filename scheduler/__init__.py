"""The scheduler service: one leader that signals waiting steps and rescues lost ones."""
