"""What makes the book: its examples are run, its figures drawn, its code set beside the words that explain it."""
