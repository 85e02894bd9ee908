"""Report text: sections, sentences, findings, tokens, augmentation. Guarantee: importing it imports nothing heavy."""
