"""Conversations: records with messages, written as text by a chat template, with the turns that count in the loss."""
