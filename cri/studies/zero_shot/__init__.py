"""What does a pretrained model bring along? Its number tokens, and its answers before any training."""
