"""Function calls in a model's answers: how they are asked for, read and enforced; knows no HTTP."""
