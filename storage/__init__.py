"""MongoDB: documents, indexes, repositories, group commit."""
