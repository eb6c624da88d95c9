"""Does a prediction change when the cases that it might rest on are removed and the model is retrained?"""
