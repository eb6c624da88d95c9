"""What studies share: records of tables, families of models."""
