"""Where does the model fail? Leave-Square-Out maps beside their random-split control."""
