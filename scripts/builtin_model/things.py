"""The two hundred everyday things that the built-in model draws, by their English names in emojibase."""

EVERYDAY = """
monkey, gorilla, dog, wolf, fox, raccoon, cat, lion, tiger, horse, unicorn, zebra, deer, cow, pig, goat, camel, giraffe,
elephant, rhinoceros, hippopotamus, mouse, rabbit, hedgehog, bat, bear, koala, panda, kangaroo, rooster, baby chick,
penguin, dove, eagle, duck, swan, owl, flamingo, peacock, parrot, frog, crocodile, turtle, lizard, snake, dragon, T-Rex,
whale, dolphin, fish, tropical fish, shark, octopus, spiral shell, crab, lobster, shrimp, snail, butterfly, ant,
honeybee, lady beetle, spider
bouquet, rose, sunflower, tulip, potted plant, evergreen tree, deciduous tree, palm tree, cactus, four leaf clover,
maple leaf, mushroom
grapes, watermelon, tangerine, lemon, banana, pineapple, red apple, green apple, pear, peach, cherries, strawberry,
kiwi fruit, tomato, avocado, eggplant, carrot, ear of corn, hot pepper, broccoli, bread, croissant, pancakes,
cheese wedge, hamburger, french fries, pizza, hot dog, sandwich, taco, cooking, popcorn, sushi, ice cream, doughnut,
cookie, birthday cake, cupcake, chocolate bar, candy, lollipop, honey pot, glass of milk, hot beverage, wine glass,
beer mug
volcano, house, castle, tent, locomotive, bus, ambulance, fire engine, police car, taxi, automobile, tractor,
racing car, motorcycle, bicycle, anchor, sailboat, ship, airplane, helicopter, rocket, flying saucer,
hourglass done, watch, alarm clock, crescent moon, sun, star, cloud, rainbow, umbrella, snowflake, snowman, fire,
ringed planet
jack-o-lantern, Christmas tree, balloon, wrapped gift, trophy, soccer ball, basketball, tennis, kite, game die,
teddy bear, glasses, sunglasses, t-shirt, jeans, dress, handbag, backpack, crown, top hat, ring, gem stone, bell,
headphone, trumpet, guitar, drum, mobile phone, laptop, camera, candle, light bulb, closed book, envelope,
pencil, scissors, key, hammer, bomb, chair
grinning face, crying face, ghost, robot
"""


def everyday() -> list[str]:
    return [name.strip() for line in EVERYDAY.strip().splitlines() for name in line.split(",") if name.strip()]
