"""`megrez serve`: OpenAI's and Anthropic's HTTP interfaces over an LLM; knows no engine."""
