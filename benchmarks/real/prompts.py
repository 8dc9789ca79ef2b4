"""Ten questions that the real model is asked."""

QUESTIONS = (
    "What is the capital of France?",
    "Write a Python function that returns the sum of a list of numbers.",
    "Explain in one sentence why the sky is blue.",
    "List three fruits that are yellow.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Give me a short poem about the sea.",
    "Who wrote Romeo and Juliet?",
    "How do I boil an egg?",
    "What does HTML stand for?",
)
