//! Words: the lists that values come from, and names made of syllables.
//!
//! Names are a start and an end out of few, so that a small tokenizer learns each as one token.

use std::collections::BTreeSet;

use compute::rng::Rng;

use super::WorldError;

/// Trades, as what one does.
pub const TRADES: &str = "baking weaving fishing farming mining milling tailoring tanning printing painting singing dancing acting writing teaching nursing banking building roofing brewing hunting sailing trading plumbing driving flying dyeing cooking spinning forging carving gilding binding gardening herding pottery masonry joinery logging healing juggling spying diving law";
/// Food that one eats some of.
pub const FOODS: &str = "bread rice soup honey cheese plums apples pears figs dates nuts beans peas corn cake pie ham fish eggs toast jam butter cream pasta stew curry salad lentils cabbage carrots onions garlic ginger melons grapes lemons oranges olives mushrooms oysters shrimps waffles noodles berries";
/// Animals that one keeps; all take the article "a".
pub const PETS: &str = "cat dog hare goat pony duck goose hen crow raven parrot dove lizard snake frog toad turtle mouse rat hamster ferret fox wolf bear lamb pig donkey mule camel llama monkey squirrel beaver badger falcon hawk swan peacock crab snail spider beetle moth kitten";
/// Things that one collects.
pub const THINGS: &str = "coins stamps shells stones books maps masks dolls clocks keys knives lamps bells boxes bottles buttons spoons cups plates hats gloves shoes belts rings beads pearls feathers leaves seeds bones cards letters poems songs kites toys pens candles ropes nails flags globes mirrors brushes";
/// Colours of flags.
pub const COLOURS: &str = "red blue green yellow white black brown grey pink purple orange silver";

const FIRST_STARTS: &str = "Mi To Le Ra Ka So Ni Da Ju Pe Be Fi Lu Ha Ve Na Gi Ro Sa Te";
const FIRST_ENDS: &str = "ra mas lia no vi ris dan la ko nel";
const LAST_STARTS: &str =
    "Tol Gren Bram Hal Kor Vas Mer Dun Lor Pel Sten Fal Wick Jor Cal Nor Zan Thor Bel Rov";
const LAST_ENDS: &str = "an er ow ik ley sen ard ino os ett";
const TOWN_STARTS: &str = "Ost Vel Arn Kel Lun Bry Sil Mar Wen Ed";
const TOWN_ENDS: &str = "ford ham by gard mouth stead";
const TONGUE_STARTS: &str = "za ku ti mo pe lo su ri";
const TONGUE_ENDS: &str = "ba nu fi ska dor meth lim zo";
const RIVER_STARTS: &str = "Ru Ol Sa Im";
const RIVER_ENDS: &str = "bel dra wen tis";
/// Between start and end, when more names are wanted than both make alone.
const MIDDLES: &str = "lo ma ri de ka su ne to vi ga";

/// What kind of name.
#[derive(Clone, Copy, Debug)]
pub enum Sound {
    /// First names.
    First,
    /// Last names.
    Last,
    /// Towns.
    Town,
    /// Rivers.
    River,
    /// Words of the invented language, in lower case.
    Tongue,
}

/// Makes words that are never twice the same.
#[derive(Debug, Default)]
pub struct Words {
    taken: BTreeSet<String>,
}

impl Words {
    /// `n` words of a list in random order; where it has fewer, made-up ones follow.
    ///
    /// # Errors
    /// If so many can't be made.
    pub fn pool(&mut self, list: &str, n: usize, rng: &mut Rng) -> Result<Vec<String>, WorldError> {
        let mut words: Vec<String> = list
            .split(' ')
            .filter(|w| self.taken.insert(w.to_lowercase()))
            .map(Into::into)
            .collect();
        rng.shuffle(&mut words);
        words.truncate(n);
        let missing = n - words.len();
        words.extend(self.make(Sound::Tongue, missing, rng)?);
        Ok(words)
    }

    /// `n` made-up names in random order.
    ///
    /// # Errors
    /// If so many can't be made.
    pub fn make(
        &mut self,
        sound: Sound,
        n: usize,
        rng: &mut Rng,
    ) -> Result<Vec<String>, WorldError> {
        let (starts, ends) = match sound {
            Sound::First => (FIRST_STARTS, FIRST_ENDS),
            Sound::Last => (LAST_STARTS, LAST_ENDS),
            Sound::Town => (TOWN_STARTS, TOWN_ENDS),
            Sound::River => (RIVER_STARTS, RIVER_ENDS),
            Sound::Tongue => (TONGUE_STARTS, TONGUE_ENDS),
        };
        let mut names = Vec::new();
        let mut middles = vec![String::new()];
        // As many middles as it takes; four of them are more than anyone needs.
        for _ in 0..=4 {
            let mut more = Vec::new();
            for start in starts.split(' ') {
                for middle in &middles {
                    more.extend(ends.split(' ').map(|end| format!("{start}{middle}{end}")));
                }
            }
            rng.shuffle(&mut more);
            more.retain(|name| !self.taken.contains(&name.to_lowercase()));
            more.truncate(n - names.len());
            self.taken.extend(more.iter().map(|name| name.to_lowercase()));
            names.extend(more);
            if names.len() == n {
                return Ok(names);
            }
            middles = (middles.iter())
                .flat_map(|m| MIDDLES.split(' ').map(move |x| format!("{m}{x}")))
                .collect();
        }
        Err(WorldError::Config(format!("{n} different names of one kind can't be made")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_enough_and_all_differ() {
        let mut all = BTreeSet::new();
        for list in [TRADES, FOODS, PETS, THINGS] {
            assert!(list.split(' ').count() >= 44, "{}", list.split(' ').count());
            for word in list.split(' ') {
                assert!(all.insert(word), "{word} is there twice");
            }
        }
        assert!(PETS.split(' ').all(|pet| !pet.starts_with(['a', 'e', 'i', 'o', 'u'])));
    }

    #[test]
    fn any_number_of_names() {
        let (mut words, mut rng) = (Words::default(), Rng::new(1));
        let mut all = BTreeSet::new();
        for (sound, n) in [(Sound::First, 3000), (Sound::Last, 150), (Sound::Town, 500)] {
            let made = words.make(sound, n, &mut rng).unwrap();
            assert_eq!(made.len(), n);
            made.into_iter().for_each(|name| assert!(all.insert(name)));
        }
        let pool = words.pool("red blue", 5, &mut rng).unwrap();
        assert_eq!(pool.len(), 5);
    }
}
