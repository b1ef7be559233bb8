"""The real relay process under load, under attack and under kill -9, and what is true of it afterwards."""
