"""What a checkpoint is turned into: recipes, their files, and the words of Olive that become recipes."""
