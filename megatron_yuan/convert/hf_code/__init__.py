"""Yuan for Hugging Face transformers (4.41 and later, 5 included): these files travel with an export and import nothing
of this package."""
