"""What a trained network becomes outside of torch."""
