"""The parts of the bilingual sample corpus that examples/sample_corpus.py writes."""
