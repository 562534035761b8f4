//! A family of board games: a few numbers make the rules, so that some games can be held out.
//!
//! In line games two players put stones on a small board (or drop them into columns) until one has
//! so many in a row; in heap games they take stones from heaps until none is left. In a reversed
//! game whoever does that loses.

use compute::rng::Rng;

use super::World;

/// What is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Stones on a board.
    Line {
        /// Columns, named from `a`.
        width: usize,
        /// Rows, numbered from 1.
        height: usize,
        /// So many in a row end the game.
        line: usize,
        /// Stones fall to the lowest empty cell of a column.
        drop: bool,
    },
    /// Stones in heaps.
    Heaps {
        /// How many each heap has, named from `a`.
        heaps: Vec<usize>,
        /// Most that are taken at once.
        most: usize,
    },
}

/// A game of the family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Game {
    /// What it is called.
    pub name: &'static str,
    /// How it goes.
    pub rules: Rules,
    /// Whoever ends the game loses.
    pub reversed: bool,
    /// No text tells of it: it is only in evaluation.
    pub held_out: bool,
}

/// A position: whose stones are where, or what is left of heaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// By row from the bottom: 0 nobody's, 1 or 2; or the heaps.
    cells: Vec<usize>,
    /// Moves made.
    moves: usize,
    /// Who won, 1 or 2; 0 if nobody could move any more.
    winner: Option<usize>,
}

/// All games.
pub fn games() -> Vec<Game> {
    let line = |name, width, height, line, drop, reversed, held_out| Game {
        name,
        rules: Rules::Line { width, height, line, drop },
        reversed,
        held_out,
    };
    let heaps = |name, heaps: &[usize], most, reversed, held_out| Game {
        name,
        rules: Rules::Heaps { heaps: heaps.to_vec(), most },
        reversed,
        held_out,
    };
    vec![
        line("Tris", 3, 3, 3, false, false, false),
        line("Avo", 3, 3, 3, false, true, false),
        line("Quor", 4, 3, 3, false, false, false),
        line("Senk", 4, 4, 3, true, false, false),
        line("Lond", 3, 4, 3, true, false, false),
        line("Mako", 4, 4, 4, false, false, false),
        heaps("Nimo", &[3, 4, 5], 3, false, false),
        heaps("Olu", &[5, 5], 2, false, false),
        heaps("Pask", &[2, 3, 4], 2, true, false),
        line("Yub", 3, 4, 3, false, false, true),
        line("Ibra", 4, 3, 3, true, true, true),
        heaps("Wem", &[4, 3], 3, false, true),
        line("Uro", 4, 4, 4, true, false, true),
    ]
}

impl Game {
    /// The rules in words.
    pub fn text(&self) -> String {
        let ends = if self.reversed { "loses" } else { "wins" };
        match &self.rules {
            Rules::Line { width, height, line, drop } => {
                let last = column(width - 1);
                let put = match drop {
                    true => format!(
                        "The board has columns a to {last} with {height} cells each. \
                         A move names a column that is not full."
                    ),
                    false => format!(
                        "The board has columns a to {last} and rows 1 to {height}. \
                         A move names an empty cell."
                    ),
                };
                format!("{} is a game for two. {put} Who has {line} in a row {ends}.", self.name)
            }
            Rules::Heaps { heaps, most } => {
                let heaps: Vec<String> = heaps
                    .iter()
                    .enumerate()
                    .map(|(i, n)| format!("{} has {n}", column(i)))
                    .collect();
                format!(
                    "{} is a game for two with heaps of stones: {}. A move takes 1 to {most} from a \
                     heap. Who takes the last stone {ends}.",
                    self.name,
                    heaps.join(", ")
                )
            }
        }
    }

    /// How it starts.
    pub fn start(&self) -> Position {
        let cells = match &self.rules {
            Rules::Line { width, height, .. } => vec![0; width * height],
            Rules::Heaps { heaps, .. } => heaps.clone(),
        };
        Position { cells, moves: 0, winner: None }
    }

    /// All moves that could be legal in some position.
    pub fn all_moves(&self) -> Vec<String> {
        match &self.rules {
            Rules::Line { width, drop: true, .. } => {
                (0..*width).map(|c| column(c).into()).collect()
            }
            Rules::Line { width, height, .. } => (0..width * height)
                .map(|cell| format!("{}{}", column(cell % width), cell / width + 1))
                .collect(),
            Rules::Heaps { heaps, most } => (0..heaps.len())
                .flat_map(|heap| (1..=*most).map(move |n| format!("{}{n}", column(heap))))
                .collect(),
        }
    }

    /// What can be played.
    pub fn legal(&self, position: &Position) -> Vec<String> {
        let moves = self.all_moves().into_iter();
        moves.filter(|m| self.play(position, m).is_some()).collect()
    }

    /// The position after a move; `None` if it isn't legal.
    pub fn play(&self, position: &Position, played: &str) -> Option<Position> {
        if position.winner.is_some() {
            return None;
        }
        let index = self.all_moves().iter().position(|m| m == played)?;
        let mut next = position.clone();
        let player = position.moves % 2 + 1;
        let ended = match &self.rules {
            Rules::Line { width, height, line, drop } => {
                let cell = match drop {
                    true => {
                        (0..*height).map(|r| r * width + index).find(|c| next.cells[*c] == 0)?
                    }
                    false => index,
                };
                if next.cells[cell] != 0 {
                    return None;
                }
                next.cells[cell] = player;
                in_line(&next.cells, *width, *height, cell) >= *line
            }
            Rules::Heaps { most, .. } => {
                let (heap, taken) = (index / most, index % most + 1);
                next.cells[heap] = next.cells[heap].checked_sub(taken)?;
                next.cells.iter().all(|n| *n == 0)
            }
        };
        next.moves += 1;
        if ended {
            next.winner = Some(if self.reversed { 3 - player } else { player });
        } else if matches!(self.rules, Rules::Line { .. }) && next.cells.iter().all(|c| *c != 0) {
            next.winner = Some(0);
        }
        Some(next)
    }
}

/// The name of a column or heap.
fn column(index: usize) -> char {
    (b'a' + index as u8) as char
}

/// Longest run of stones like that on `cell` through it.
fn in_line(cells: &[usize], width: usize, height: usize, cell: usize) -> usize {
    let (x, y) = ((cell % width) as isize, (cell / width) as isize);
    let like = |x: isize, y: isize| {
        (0..width as isize).contains(&x)
            && (0..height as isize).contains(&y)
            && cells[y as usize * width + x as usize] == cells[cell]
    };
    let run = |dx: isize, dy: isize| (1..).take_while(|i| like(x + i * dx, y + i * dy)).count();
    [(1, 0), (0, 1), (1, 1), (1, -1)]
        .into_iter()
        .map(|(dx, dy)| 1 + run(dx, dy) + run(-dx, -dy))
        .max()
        .unwrap_or(1)
}

impl World {
    /// Plays up to `most` random moves; stops when the game ends.
    fn random_play(&self, game: &Game, most: usize, rng: &mut Rng) -> (Vec<String>, Position) {
        let (mut moves, mut position) = (Vec::new(), game.start());
        while moves.len() < most && position.winner.is_none() {
            let played = rng.choose(&game.legal(&position)).clone();
            // Each move was among the legal ones.
            position = game.play(&position, &played).unwrap_or(position);
            moves.push(played);
        }
        (moves, position)
    }

    fn any_game(&self, held_out: bool, rng: &mut Rng) -> Game {
        let games: Vec<Game> = games().into_iter().filter(|g| g.held_out == held_out).collect();
        rng.choose(&games).clone()
    }

    /// Document: rules, and a game played to its end.
    pub(super) fn match_played(&self, rng: &mut Rng) -> String {
        let game = self.any_game(false, rng);
        let (moves, position) = self.random_play(&game, usize::MAX, rng);
        let end = match position.winner {
            Some(0) | None => "Nobody wins.".to_string(),
            Some(player) => format!("Player {player} wins."),
        };
        let rules = if rng.chance(0.5) { game.text() } else { format!("A game of {}.", game.name) };
        format!("{rules}\nMoves: {}. {end}", moves.join(" "))
    }

    /// Rules, moves so far, and a wish for the next: with the game, the position, and a move.
    pub(super) fn ask_move(
        &self,
        held_out: bool,
        rng: &mut Rng,
    ) -> (String, Game, Position, String) {
        let game = self.any_game(held_out, rng);
        let longest = match &game.rules {
            Rules::Line { width, height, .. } => width * height,
            Rules::Heaps { heaps, .. } => heaps.iter().sum(),
        };
        loop {
            let most = 1 + rng.index(longest);
            let (moves, position) = self.random_play(&game, most, rng);
            // Where every move is legal there is nothing to know.
            let legal = game.legal(&position);
            if legal.is_empty() || legal.len() == game.all_moves().len() {
                continue;
            }
            let ways =
                ["Your move?", "What do you play?", "Name a legal move.", "It is your turn."];
            let question = format!(
                "{}\nMoves: {}.\n{}",
                game.text(),
                moves.join(" "),
                super::text::pick(&ways, rng)
            );
            let played = rng.choose(&legal).clone();
            return (question, game, position, played);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn after(game: &Game, moves: &str) -> Option<Position> {
        moves.split(' ').try_fold(game.start(), |p, m| game.play(&p, m))
    }

    #[test]
    fn lines_win_or_lose() {
        let games = games();
        let [tris, avo, senk] = [&games[0], &games[1], &games[3]];
        assert_eq!(after(tris, "a1 b1 a2 b2 a3").unwrap().winner, Some(1));
        assert_eq!(after(avo, "a1 b1 a2 b2 a3").unwrap().winner, Some(2));
        assert_eq!(after(tris, "a1 b2 c3 a3 c1 b1 b3 c2 a2").unwrap().winner, Some(0));
        assert_eq!(after(tris, "a1 c1 b2 c2 c3").unwrap().winner, Some(1));
        assert_eq!(after(tris, "a3 c2 b2 a1 c1").unwrap().winner, Some(1));
        assert!(after(tris, "a1 a1").is_none());
        assert!(after(tris, "d1").is_none());
        assert!(after(tris, "a1 b1 a2 b2 a3 c3").is_none(), "the game is over");
        // Four stones fill a column; three of one player's on top of each other win.
        assert!(after(senk, "a a a a a").is_none());
        assert_eq!(after(senk, "a b a b a").unwrap().winner, Some(1));
        assert_eq!(after(senk, "a b b c d c c").unwrap().winner, Some(1), "a rising line");
    }

    #[test]
    fn heaps_run_out() {
        let games = games();
        let [olu, wem] = [&games[7], &games[11]];
        assert_eq!(after(olu, "a2 a2 a1 b2 b2 b1").unwrap().winner, Some(2));
        assert!(after(olu, "a2 a2 a2").is_none(), "one stone is left");
        assert!(after(olu, "a3").is_none(), "at most 2");
        assert_eq!(wem.legal(&after(wem, "a3 b3").unwrap()), ["a1"]);
    }

    #[test]
    fn known_games_and_held_out_ones() {
        let games = games();
        assert!(games.iter().filter(|g| !g.held_out).count() >= 8);
        assert!(games.iter().filter(|g| g.held_out).count() >= 3);
        for (i, a) in games.iter().enumerate() {
            assert!(
                games[..i]
                    .iter()
                    .all(|b| a.name != b.name && (&a.rules, a.reversed) != (&b.rules, b.reversed))
            );
        }
    }
}
