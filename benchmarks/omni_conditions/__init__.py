"""The paper's table 1 in small: text-only data, order and ratios of conditions, where the truth is known."""
