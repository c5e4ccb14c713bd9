//! The steps that create and remove a container, and the steps that clean up after a process was
//! killed between any two of them. This module only plans: [`super::create`] and [`super::delete`]
//! find out what exists, and take the steps.
//!
//! Two things show the state of a container. Its mark in the store means that a process is working
//! on it, or was: it is set first, and cleared last. Its record, which is written before anything
//! outside the store is created, shows what may exist there. A container without the mark is
//! therefore never taken for a leftover, whatever its record says, and even if the record cannot be
//! read.

use super::record::State;

/// What exists of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    /// Whether it is marked as unfinished.
    pub marked: bool,
    /// Its record; `None` when there is none.
    pub record: Option<Recorded>,
}

/// The part of a record that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Its state.
    pub state: State,
    /// Whether it is this container's own. A copy of a container, in another store, has the record
    /// of the original, to which everything outside the store belongs.
    pub own: bool,
    /// Whether it writes to the container's own directory, and `delete --keep` has kept that or is
    /// keeping it.
    pub keeps: bool,
    /// Whether it writes to a directory outside the store that `create` created.
    pub new_upper: bool,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create the container in the store, marked.
    MakeContainer,
    /// Mark it as unfinished.
    Mark,
    /// Write the record with this state.
    Record(State),
    /// Create the directories outside the store.
    MakeDirectories,
    /// Write the runtime's configuration.
    WriteConfiguration,
    /// Mount its root file system, which creates its upper.
    Mount,
    /// Create its working directory.
    MakeWorkingDirectory,
    /// Unmount its root file system.
    Unmount,
    /// Remove the runtime's configuration, and the directories.
    RemoveConfiguration,
    /// Remove the upper that was created outside the store.
    RemoveUpper,
    /// Create the mount points of its volumes, and fill new volumes with what the image has there.
    FillVolumes,
    /// Clear the mark.
    Unmark,
    /// Remove the container from the store.
    RemoveContainer,
}

/// What `create` finds under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// A container.
    Ready,
    /// What a deleted container wrote: `create` continues with it.
    Kept,
    /// Something that `create` did not create, or that has changed since.
    Strange,
    /// Remains of a killed process: take these steps, then look again.
    Undo(Vec<Step>),
}

impl Remains {
    /// What `create` should do with it.
    pub fn left(&self) -> Left {
        match (self.marked, self.record) {
            (false, None) => Left::Strange,
            (
                false,
                Some(Recorded {
                    state: State::Ready,
                    ..
                }),
            ) => Left::Ready,
            (
                false,
                Some(Recorded {
                    state: State::Kept, ..
                }),
            ) => Left::Kept,
            (
                false,
                Some(Recorded {
                    state: State::Creating | State::Deleting,
                    ..
                }),
            ) => Left::Strange,
            (true, None) => Left::Undo(vec![Step::RemoveContainer]),
            // All but the last step of a `create`, or no more than the first of a `delete`.
            (
                true,
                Some(Recorded {
                    state: State::Ready | State::Kept,
                    ..
                }),
            ) => Left::Undo(vec![Step::Unmark]),
            (
                true,
                Some(
                    record @ Recorded {
                        state: State::Creating | State::Deleting,
                        ..
                    },
                ),
            ) => Left::Undo(undo(&record)),
        }
    }

    /// The steps that delete it, with `keep` except for what it wrote; `None` if lxcri-fs did not
    /// create it.
    pub fn delete(&self, keep: bool) -> Option<Vec<Step>> {
        match (self.marked, self.record) {
            (false, None) => None,
            (true, None) => Some(vec![Step::RemoveContainer]),
            (_, Some(record)) => {
                let mut steps = vec![Step::Mark];
                // An unfinished container is undone as `create` would: if this is interrupted, the
                // record still says that its upper was never used, and holds nothing to keep.
                if record.state != State::Creating {
                    steps.push(Step::Record(State::Deleting));
                }
                steps.extend(undo(&Recorded {
                    keeps: keep,
                    ..record
                }));
                Some(steps)
            }
        }
    }
}

/// The steps that create a container; with `kept`, in what another one wrote.
pub fn create(kept: bool) -> Vec<Step> {
    vec![
        if kept {
            Step::Mark
        } else {
            Step::MakeContainer
        },
        Step::Record(State::Creating),
        Step::MakeDirectories,
        Step::WriteConfiguration,
        Step::Mount,
        Step::MakeWorkingDirectory,
        Step::FillVolumes,
        Step::Record(State::Ready),
        Step::Unmark,
    ]
}

/// The steps that remove what was created outside the store, and then what is in it, unless that is
/// kept.
pub fn undo(record: &Recorded) -> Vec<Step> {
    let mut steps = Vec::new();
    if record.own {
        steps.extend([Step::Unmount, Step::RemoveConfiguration]);
        if record.new_upper && record.state == State::Creating {
            steps.push(Step::RemoveUpper);
        }
    }
    if record.keeps {
        steps.extend([Step::Record(State::Kept), Step::Unmark])
    } else {
        steps.push(Step::RemoveContainer)
    }
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What there is, as far as steps change it.
    #[derive(Debug, Clone, Default)]
    struct World {
        found: Option<Remains>,
        /// What is outside the store: directories, an unfinished configuration, a configuration, a
        /// mount, an upper elsewhere.
        dirs: bool,
        temporary: bool,
        config: bool,
        mounted: bool,
        upper: bool,
        /// Whether there is something in the container that somebody wrote, and has not deleted.
        precious: bool,
        /// Whether what was precious was lost.
        lost: bool,
    }

    impl World {
        fn is_clear(&self) -> bool {
            !(self.dirs || self.temporary || self.config || self.mounted)
        }

        /// Takes steps, `left` parts of steps at most: whether they were all taken.
        fn take(&mut self, steps: &[Step], mut about: Recorded, left: &mut u32) -> bool {
            for step in steps {
                for part in 0..2 {
                    if *left == 0 {
                        return false;
                    }
                    *left -= 1;
                    self.part(*step, part, &mut about);
                }
            }
            true
        }

        /// Half of a step: most happen as a whole.
        fn part(&mut self, step: Step, part: u32, about: &mut Recorded) {
            let mark = |world: &mut Self, marked| {
                if let Some(found) = &mut world.found {
                    found.marked = marked;
                }
            };
            match (step, part) {
                (Step::MakeContainer, 0) => {
                    self.found = Some(Remains {
                        marked: true,
                        record: None,
                    })
                }
                (Step::Mark, 0) => mark(self, true),
                (Step::Unmark, 0) => mark(self, false),
                (Step::Record(state), 0) => {
                    about.state = state;
                    if let Some(found) = &mut self.found {
                        found.record = Some(*about);
                    }
                }
                (Step::MakeDirectories, 0) => self.dirs = true,
                (Step::WriteConfiguration, 0) => self.temporary = true,
                (Step::WriteConfiguration, _) => (self.temporary, self.config) = (false, true),
                (Step::Mount, 0) => self.upper |= about.new_upper,
                (Step::Mount, _) => self.mounted = true,
                (Step::Unmount, 0) => self.mounted = false,
                (Step::RemoveConfiguration, 0) => (self.temporary, self.config) = (false, false),
                (Step::RemoveConfiguration, _) => self.dirs = false,
                (Step::RemoveUpper, 0) => self.upper = false,
                (Step::RemoveContainer, 0) => {
                    self.lost |= self.precious;
                    (self.found, self.precious) = (None, false);
                }
                _ => {}
            }
        }

        /// What a `create` does that is killed after so many parts of steps. Whether it says that
        /// it has made a container.
        fn create(&mut self, elsewhere: bool, mut left: u32) -> bool {
            let left = &mut left;
            let kept = loop {
                let Some(found) = self.found else { break false };
                let about = found.record.unwrap_or(Recorded {
                    state: State::Creating,
                    own: true,
                    keeps: false,
                    new_upper: false,
                });
                match found.left() {
                    Left::Ready | Left::Strange => return false,
                    Left::Kept => break true,
                    Left::Undo(steps) => {
                        if !self.take(&steps, about, left) {
                            return false;
                        }
                    }
                }
            };
            assert!(self.is_clear(), "something is in the way: {self:?}");
            let about = Recorded {
                state: State::Creating,
                own: true,
                keeps: kept,
                new_upper: elsewhere && !self.upper && !kept,
            };
            let made = self.take(&create(kept), about, left);
            self.precious |= made;
            made
        }

        /// What a `delete` does.
        fn delete(&mut self, keep: bool, mut left: u32) -> bool {
            let Some(found) = self.found else {
                return false;
            };
            let Some(steps) = found.delete(keep) else {
                return false;
            };
            let about = found.record.unwrap_or(Recorded {
                state: State::Creating,
                own: true,
                keeps: keep,
                new_upper: false,
            });
            if left > 0 && !keep {
                // Somebody has said that it is not wanted any more.
                self.precious = false;
            }
            self.take(
                &steps,
                Recorded {
                    keeps: keep,
                    ..about
                },
                &mut left,
            )
        }
    }

    /// More parts than anything has.
    const ALL: u32 = 1000;

    #[derive(Debug, Clone, Copy)]
    enum Call {
        Create { elsewhere: bool, parts: u32 },
        Delete { keep: bool, parts: u32 },
    }

    fn call() -> impl Strategy<Value = Call> {
        let parts = prop_oneof![3 => 0..20_u32, 1 => Just(ALL)];
        prop_oneof![
            (any::<bool>(), parts.clone())
                .prop_map(|(elsewhere, parts)| Call::Create { elsewhere, parts }),
            (any::<bool>(), parts).prop_map(|(keep, parts)| Call::Delete { keep, parts }),
        ]
    }

    proptest! {
        #[test]
        fn killed_anywhere_the_next_call_goes_on_and_nothing_is_lost(
            calls in prop::collection::vec(call(), 0..12),
            keep in any::<bool>(),
        ) {
            let mut world = World::default();
            for call in calls {
                match call {
                    Call::Create { elsewhere, parts } => drop(world.create(elsewhere, parts)),
                    Call::Delete { keep, parts } => drop(world.delete(keep, parts)),
                }
                prop_assert!(!world.lost, "{world:?}");
            }
            let mut other = world.clone();
            // The next create makes a container, or there is one.
            let made = world.create(false, ALL);
            let ready = world.found.is_some_and(|found| found.left() == Left::Ready);
            prop_assert!(made || ready, "{world:?}");
            let unmarked = world.found.is_some_and(|found| !found.marked);
            let whole = world.config && world.mounted && !world.temporary && unmarked;
            prop_assert!(whole, "{world:?}");
            prop_assert!(!world.lost);
            // The next delete leaves nothing, or what was to be kept.
            let was_there = other.found.is_some();
            prop_assert_eq!(other.delete(keep, ALL), was_there);
            prop_assert!(other.is_clear(), "{other:?}");
            let kept = other.found.is_none_or(|found| keep && found.left() == Left::Kept);
            prop_assert!(kept, "{other:?}");
        }

        /// What is not marked is never touched by a create, whatever is in it; nor is what is
        /// outside the store, for the sake of a copy.
        #[test]
        fn nothing_of_others_is_touched(
            state in prop::option::of(0..4_usize),
            marked in any::<bool>(),
            keeps in any::<bool>(),
            new_upper in any::<bool>(),
            keep in any::<bool>(),
        ) {
            const STATES: [State; 4] =
                [State::Creating, State::Ready, State::Deleting, State::Kept];
            let outside = [Step::Unmount, Step::RemoveConfiguration, Step::RemoveUpper];
            let recorded = |n, own| Recorded { state: STATES[n], own, keeps, new_upper };
            let found = |own| Remains { marked, record: state.map(|n| recorded(n, own)) };
            if !marked {
                prop_assert!(!matches!(found(true).left(), Left::Undo(_)));
            }
            if let Left::Undo(steps) = found(false).left() {
                prop_assert!(steps.iter().all(|step| !outside.contains(step)));
            }
            let inside = |steps: Vec<Step>| steps.iter().all(|step| !outside.contains(step));
            prop_assert!(found(false).delete(keep).is_none_or(inside));
            if state.is_none() && !marked {
                prop_assert_eq!(found(true).delete(keep), None);
            }
        }
    }
}
