"""Speed and memory beside other programs: `python -m llama.benchmark`, and the measurements that it starts."""
