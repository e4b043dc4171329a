"""How a candidate is made to answer: as it is, with examples, or after fine-tuning."""
