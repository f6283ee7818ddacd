"""Records of files, and the documents that are made of them: one file per format, and their registry."""
