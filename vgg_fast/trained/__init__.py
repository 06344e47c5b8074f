"""What is done with a trained network: evaluate, predict, export, and a page to try it on."""
