"""Many traces as tables, for engines that are made for questions about all of them."""
