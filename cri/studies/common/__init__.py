"""What studies share: records of tables, ranges in captions."""
