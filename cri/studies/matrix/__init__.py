"""All tasks, formats and splits beside each other: what is learnt, and what each answer and step rests on."""
