"""What serve.py serves: the engine, OpenAI's protocol, the page."""
