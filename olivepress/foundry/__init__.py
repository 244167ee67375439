"""What Foundry Local is given: names, inference_model.json, its cache and index, its runtime."""
