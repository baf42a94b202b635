"""What a family of encoders is: its row, its inputs and sizes, and the table of all families."""
