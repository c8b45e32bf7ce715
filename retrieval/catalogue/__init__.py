"""A catalogue of embeddings in a FAISS index."""
