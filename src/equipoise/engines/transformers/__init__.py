"""Recording routing from models run with Hugging Face transformers."""
