"""What the search chooses from: configs at a given cost, in the blocks of a tower or behind a projector."""
