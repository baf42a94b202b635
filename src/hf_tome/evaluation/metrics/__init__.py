"""From records to numbers and their intervals."""
