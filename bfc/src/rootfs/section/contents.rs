//! Contents, their frames, and the layers that they came in.

use std::borrow::Cow;

use super::super::format::{
    CONTENT_LEN, Content, FRAME_LEN, Frame, LAYER_LEN, LayerRecord, Layout, MAX_LAYERS, max_stored,
};
use super::{Bytes, Section};
use crate::error::{Error, Result};
use crate::format::{HEADER_LEN, MAX_PATH};

impl Section {
    /// How many content records there are.
    pub fn content_count(&self) -> u64 {
        self.header.contents.size / CONTENT_LEN as u64
    }

    /// A content record.
    pub fn content(&self, index: u64) -> Result<Content> {
        let b: [u8; CONTENT_LEN] = self.record(self.header.contents, index)?;
        let content = Content::parse(&b)?;
        let frame_len = 1_u64 << self.header.frame_log2;
        let damaged = |reason| {
            Err(Error::Section {
                offset: self
                    .header
                    .contents
                    .offset
                    .saturating_add(index.saturating_mul(CONTENT_LEN as u64)),
                reason,
            })
        };
        if content.frames != 0 && content.size.div_ceil(frame_len) != u64::from(content.frames) {
            return damaged("a content with a wrong number of frames");
        }
        if u64::from(content.first_frame) + u64::from(content.frames) > self.frame_count() {
            return damaged("a content with frames that are not there");
        }
        // A section made in memory also describes v1 content, which is one piece whatever its
        // length.
        if let Bytes::File {
            offset: section, ..
        } = self.bytes
        {
            if content.offset < HEADER_LEN as u64
                || content
                    .offset
                    .checked_add(content.stored)
                    .is_none_or(|end| end > section)
            {
                return damaged("a content that is not before the section");
            }
            if content.layout != Layout::Direct || content.source != 0 {
                return damaged("a content that is not in the image");
            }
            if content.frames == 0
                && (content.size > frame_len
                    || content.stored == 0
                    || content.stored > max_stored(frame_len))
            {
                return damaged("a content that is one piece and longer than a frame, or empty");
            }
        }
        Ok(content)
    }

    /// The path that is the associated data of an encrypted content.
    pub fn content_path(&self, content: &Content) -> Result<Cow<'_, [u8]>> {
        if content.path_len as usize > MAX_PATH {
            return Err(Error::Section {
                offset: self.header.contents.offset,
                reason: "a content with a path that is too long",
            });
        }
        self.range(
            self.header.names,
            u64::from(content.path),
            u64::from(content.path_len),
        )
    }

    /// How many frame records there are.
    pub fn frame_count(&self) -> u64 {
        self.header.frames.size / FRAME_LEN as u64
    }

    /// Frame number `index` of a content.
    pub fn frame(&self, content: &Content, index: u32) -> Result<Frame> {
        let frame: [u8; FRAME_LEN] = self.record(
            self.header.frames,
            u64::from(content.first_frame) + u64::from(index),
        )?;
        let frame = Frame::parse(&frame);
        if frame.stored == 0 || u64::from(frame.stored) > max_stored(1 << self.header.frame_log2) {
            return Err(Error::Section {
                offset: self.header.frames.offset,
                reason: "a frame that is stored longer than a frame, or empty",
            });
        }
        if frame
            .offset
            .checked_add(u64::from(frame.stored))
            .is_none_or(|end| end > content.stored)
        {
            return Err(Error::Section {
                offset: self.header.frames.offset,
                reason: "a frame outside its content",
            });
        }
        Ok(frame)
    }

    /// A frame record by its number among all; it is not checked against any content.
    pub fn raw_frame(&self, index: u64) -> Result<Frame> {
        let frame: [u8; FRAME_LEN] = self.record(self.header.frames, index)?;
        Ok(Frame::parse(&frame))
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> Result<Vec<LayerRecord>> {
        let count = self.header.layers.size / LAYER_LEN as u64;
        if count > MAX_LAYERS as u64 {
            return Err(Error::TooLarge("the number of layers (the limit is 4096)"));
        }
        let end = if let Bytes::File { offset, .. } = self.bytes {
            offset
        } else {
            u64::MAX
        };
        let mut layers: Vec<LayerRecord> = Vec::new();
        let mut below = LayerRecord {
            data_end: HEADER_LEN as u64,
            ..LayerRecord::default()
        };
        for index in 0..count {
            let b: [u8; LAYER_LEN] = self.record(self.header.layers, index)?;
            let layer = LayerRecord::parse(&b);
            let contents = (below.contents_end..).contains(&layer.contents_end)
                && u64::from(layer.contents_end) <= self.content_count();
            let frames = (below.frames_end..).contains(&layer.frames_end)
                && u64::from(layer.frames_end) <= self.frame_count();
            if !contents || !frames || !(below.data_end..=end).contains(&layer.data_end) {
                let offset = self.header.layers.offset + index * LAYER_LEN as u64;
                return Err(Error::Section {
                    offset,
                    reason: "a layer that ends outside the image, or below the one before it",
                });
            }
            below = layer.clone();
            layers.push(layer);
        }
        Ok(layers)
    }
}
