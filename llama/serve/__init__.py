"""A server for OpenAI's clients and a page in the browser, on the models of this project: python -m llama.serve.

Nothing below imports this folder, and its packages are an extra: pip install '.[serve]'.

Try: import fastapi in scheduler.py; tests/test_serve_scheduler.py
(test_property_the_scheduler_needs_no_web_framework) fails.
"""
