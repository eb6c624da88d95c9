"""Which training settings reach what accuracy? A grid of learning rates and weight decays, trained as replicas."""
