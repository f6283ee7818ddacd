"""From texts and documents to token files, by a pipeline that a second start continues: one file per idea."""
