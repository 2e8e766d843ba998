"""`make mutants`: break the program in named places, one at a time, in a copy; the named test must fail each time.

    python -m tests.mutants [--only NAME …]

A mutant that survives is a missing test; one whose text is no longer in its file (tests/test_mutants.py) has to follow
the code. Each names the test nearest to the mistake; others may fail as well.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parents[1]
COPIED = ("llama", "tokenizer", "weights", "tests", "examples", "finetune.py", "generate.py", "train.py",
          "pyproject.toml")


class Mutant(NamedTuple):
    name: str
    file: str
    old: str                # stands once in the file
    new: str
    test: str               # what must fail: file::test


MUTANTS = [
    # the model
    Mutant("rotary pairs are neighbours", "llama/model.py",
           "turned = torch.cat([-second, first], dim=-1)",
           "turned = torch.stack([-x32[..., 1::2], x32[..., 0::2]], dim=-1).flatten(-2)",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("key-value heads repeat in the wrong order", "llama/model.py",
           "k = k.repeat_interleave(H // G, dim=1)",
           "k = k.repeat(1, H // G, 1, 1)",
           "tests/test_model.py::test_two_ways_fused_attention_equals_its_definition"),
    Mutant("causal mask aligned to the upper left", "llama/masks.py",
           "device=device).tril(S - T)",
           "device=device).tril()",
           "tests/test_model.py::test_two_ways_cached_in_chunks_equals_one_shot"),
    Mutant("norm in the dtype of its input", "llama/model.py",
           "x32 = x.float()\n        x32 = x32 * torch.rsqrt",
           "x32 = x\n        x32 = x32 * torch.rsqrt",
           "tests/test_fixtures.py::test_two_ways_parts_equal_transformers"),
    Mutant("last padding slot is seen", "llama/masks.py",
           "real = slots >= padding[:, None, None]",
           "real = slots >= padding[:, None, None] - 1",
           "tests/test_model.py::test_worked_example_padding_mask"),
    Mutant("sliding window one too wide", "llama/masks.py",
           ".triu(S - T - window + 1)",
           ".triu(S - T - window)",
           "tests/test_model.py::test_worked_example_window_mask"),
    Mutant("cached texts start again at position 0", "llama/model.py",
           "positions = torch.arange(start, start + T, device=tokens.device)",
           "positions = torch.arange(T, device=tokens.device)",
           "tests/test_model.py::test_two_ways_cached_in_chunks_equals_one_shot"),
    Mutant("YaRN without its temperature", "llama/config.py",
           "return recommended(1)",
           "return 1.0",
           "tests/test_config.py::test_worked_example_yarns_magnitude"),
    Mutant("Llama 3 scaling with the ramp upside down", "llama/rope_scaling.py",
           "return frequencies * keep + frequencies / scaling.factor * (1 - keep)",
           "return frequencies * (1 - keep) + frequencies / scaling.factor * keep",
           "tests/test_model.py::test_worked_example_llama3_scaling_keeps_short_waves_and_divides_long_ones"),
    Mutant("θ read with yesterday's key alone", "llama/config_json.py",
           "((old, values, new) if old else (new, values))", "(values,)",
           "tests/test_config_json.py::test_worked_example_yesterdays_and_todays_rope_keys_are_read_alike"),
    Mutant("no token as an unsigned number is a large id", "weights/formats/gguf_vocabulary.py",
           "value in (-1, 2**32 - 1) or 0 <= value < count:", "0 <= value < count:",
           "tests/test_gguf_vocabulary.py::test_worked_example_roles_of_no_token_are_passed_over"),
    Mutant("a tool's name by chance in the words is enough", "llama/tasks/fitting.py",
           "if lost or some and _same(encode, others[field], ids):", "if lost:",
           "tests/test_fitting.py::test_refusal_of_what_a_template_leaves_out_though_words_hold_its_name_by_chance"),
    # generation
    Mutant("positions count padding", "llama/generation.py",
           "positions = (slots - self.padding[:, None]).clamp(min=0)",
           "positions = (slots - 0 * self.padding[:, None]).clamp(min=0)",
           "tests/test_generation.py::test_worked_example_positions_do_not_count_padding"),
    Mutant("top-p drops the token that crosses", "llama/sampling.py",
           "behind = before >= p",
           "behind = before + mass >= p",
           "tests/test_sampling.py::test_worked_example_top_p_keeps_the_token_that_crosses"),
    Mutant("repetition penalty rewards negative logits", "llama/sampling.py",
           "torch.where(logits > 0, logits / penalty, logits * penalty)",
           "logits / penalty",
           "tests/test_sampling.py::test_worked_example_repetition_penalty_never_rewards"),
    Mutant("beams end at any rank", "llama/decoding/beam_search.py",
           "if rank < N:",
           "if rank >= 0:",
           "tests/test_beam_search.py::test_worked_example_an_end_of_low_rank_does_not_count"),
    # training
    Mutant("the end of an answer is not learned", "tokenizer/chat.py",
           'turns={role: (f"<|im_start|>{role}\\n", "{}<|im_end|>", "\\n") for role in ROLES}',
           'turns={role: (f"<|im_start|>{role}\\n", "{}", "<|im_end|>\\n") for role in ROLES}',
           "tests/test_chat.py::test_worked_example_the_answer_and_its_end_are_learned"),
    Mutant("what people say becomes special tokens", "tokenizer/chat_template.py",
           "for begin, end, origin in text.stretches() if origin & WRITTEN)",
           "for begin, end, origin in text.stretches())",
           "tests/test_chat_template.py::test_property_no_word_of_a_person_becomes_a_mark"),
    Mutant("an end that the template writes late is not learned", "tokenizer/chat_template.py",
           "text = self._closed(text, messages, tokenizer, **given)",
           "pass",
           "tests/test_chat_template.py::test_worked_example_the_answer_and_its_end_are_learned"),
    Mutant("labels are not shifted", "llama/tasks/task.py",
           "goal[:end] = ids[1:].where",
           "goal[:end] = ids[:-1].where",
           "tests/test_tasks.py::test_worked_example_collate_shifts_and_pads"),
    Mutant("micro-batches weigh alike", "llama/trainer.py",
           "(loss * weight / targets).backward()",
           "(loss * weight / self.task.count(self.task.targets(batch)) / len(batches)).backward()",
           "tests/test_trainer.py::test_two_ways_accumulated_micro_batches_equal_one_batch"),
    Mutant("every epoch in the same order", "llama/trainer.py",
           "manual_seed(self.config.seed * 1_000_003 + epoch)",
           "manual_seed(self.config.seed * 1_000_003)",
           "tests/test_trainer.py::test_property_each_epoch_visits_every_sample_once_in_an_order_of_its_own"),
    Mutant("weight decay on the gains of norms", "llama/training/optimizer.py",
           '"weight_decay": 0.0}',
           '"weight_decay": weight_decay}',
           "tests/test_optimizer.py::test_worked_example_matrices_decay_and_gains_do_not"),
    Mutant("a flipped bit goes on as other weights", "llama/training/run_state.py",
           "return digest(content) == expected",
           "return True",
           "tests/test_run_state.py::test_property_of_a_damaged_state_nothing_is_taken"),
    Mutant("only the newest best is kept", "llama/training/run_state.py",
           "if step not in known:",
           "if step < best[0]:",
           "tests/test_run_state.py::test_property_two_states_and_what_evaluated_best_for_each_are_kept"),
    Mutant("the optimiser forgets where it was", "llama/training/run_state.py",
           "        optimizer.load_state_dict(state[\"optimizer\"])\n",
           "        pass\n",
           "tests/test_run_state.py::test_two_ways_what_is_written_is_read"),
    # adapters
    Mutant("rsLoRA scaled as LoRA", "llama/lora/targets.py",
           "(math.sqrt(rank) if self.rslora else rank)",
           "rank",
           "tests/test_lora_layers.py::test_worked_example_the_scale_of_rslora"),
    Mutant("LoRA without its scale", "llama/lora/layers.py",
           "inner, B.to(x.dtype)) * self.scale",
           "inner, B.to(x.dtype))",
           "tests/test_lora_layers.py::test_worked_example_two_by_two"),
    Mutant("DoRA's lengths along the wrong axis", "llama/lora/layers.py",
           "lengths = (weight.float() + self.product()).norm(dim=1)",
           "lengths = (weight.float() + self.product()).norm(dim=0)",
           "tests/test_lora_layers.py::test_worked_example_dora_two_by_two"),
    Mutant("an adapter on top of one that can be unmerged", "llama/lora/swap.py",
           'if getattr(model, "merged", None):',
           "if False:",
           "tests/test_lora.py::test_refusal_of_merging_in_the_wrong_order"),
    Mutant("a merged head is tied again", "llama/lora/swap.py",
           "if torch.equal(model.embed_tokens.weight, model.lm_head.weight):",
           "if True:",
           "tests/test_lora.py::test_two_ways_merged_equals_adapter_and_unmerge_restores"),
    Mutant("a guard against the evaluation before", "llama/training/watched_texts.py",
           '/ self.found[0][name]["bits_per_byte"]',
           '/ self.found[max(0, step - 1)][name]["bits_per_byte"]',
           "tests/test_watched_texts.py::test_worked_example_a_guard_holds_against_what_was_before"),
    Mutant("a share of what is there already", "llama/training/mixed_samples.py",
           "own * share / (1 - sum(shares))",
           "own * share",
           "tests/test_mixed_samples.py::test_worked_example_of_a_share"),
    Mutant("what a guard forbids is the best", "llama/training/eval_history.py",
           'if not (allowed and scores["loss"] < self.best):',
           'if not scores["loss"] < self.best:',
           "tests/test_watched_texts.py::test_property_a_run_ends_at_a_guard_and_its_result_kept_within"),
    Mutant("learned rows that the head never says", "llama/lora/rows.py",
           "return y.index_copy_(-1, part.ids, functional.linear(x, part.rows.to(x.dtype)))",
           "return y",
           "tests/test_lora_rows.py::test_two_ways_merged_equals_adapter_and_old_rows_stay"),
    Mutant("adapters merged into few bits", "llama/lora/swap.py",
           "if not isinstance(wrapper.base, nn.Linear | nn.Embedding | Head):",
           "if False:",
           "tests/test_quantize.py::test_refusal_of_merging_into_few_bits_and_learning_them_whole"),
    # few bits, guesses
    Mutant("int8 scale of 128 for 127", "llama/quantization/rounding.py",
           "scale = _eight_bits_up(weight.abs().amax(-1) / 127)",
           "scale = _eight_bits_up(weight.abs().amax(-1) / 128)",
           "tests/test_rounding.py::test_worked_example_int8_rows"),
    Mutant("turns at rounding forget the other groups", "llama/quantization/gptq.py",
           "half += (q[:, k] * step[:, None] + start[:, None] - before) @ moments[part]",
           "half += 0",
           "tests/test_gptq.py::test_property_every_turn_loses_less_and_the_first_most"),
    Mutant("guesses of the first pass count as decoded", "llama/generation.py",
           "(len(self.times) - first) / seconds",
           "(len(self.times) - 1) / seconds",
           "tests/test_speculative.py::test_worked_example_speed_counts_no_token_of_the_first_pass"),
    Mutant("int8 values without their scale", "llama/cache.py",
           "v = self.values[:, :, places] * self.value_scales[:, :, places]",
           "v = self.values[:, :, places].float()",
           "tests/test_cache.py::test_worked_example_int8"),
    Mutant("a refused guess is drawn anew from all", "llama/decoding/speculative.py",
           "rest = (rest - q[i]).clamp(min=0)",
           "rest = rest.clone()",
           "tests/test_speculative.py::test_worked_example_the_rule_gives_the_models_own_distribution"),
    # data
    Mutant("an answer of weight 0 is learned", "llama/tasks/fitting.py",
           "return [keep for learn, length in runs for keep in [learn and next(counted)] * length]",
           "return learned",
           "tests/test_tasks.py::test_worked_example_an_answer_of_weight_0_is_read"),
    Mutant("a sample that is too long loses its beginning", "llama/tasks/fitting.py",
           "return Fitted(messages, ids[:end], learned[:end], cut,",
           "return Fitted(messages, ids[-end:], learned[-end:], cut,",
           "tests/test_fitting.py::test_property_the_question_stays"),
    Mutant("an answer marked as bad is learned", "llama/datasets/conversations.py",
           "return value is False or isinstance(value, str) and value.strip().lower() == \"false\"",
           "return False",
           "tests/test_conversations.py::test_worked_example_answers_marked_as_bad_are_left_out_aloud"),
    Mutant("a header in other letters is data", "llama/datasets/tables.py",
           "return cell.strip().lower() if cell.strip().lower() in known else cell.strip()",
           "return cell.strip()",
           "tests/test_tables.py::test_worked_example_a_header_in_other_letters"),
    Mutant("what is wrong is passed over in silence", "llama/datasets/reading.py",
           "        if not self.skip_bad:\n",
           "        if False:\n",
           "tests/test_reading.py::test_refusal_what_is_wrong_is_refused_unless_it_is_skipped"),
    Mutant("bytes of another encoding become question marks", "llama/datasets/lines.py",
           "return reading.decode(line, encoding, place)\n",
           "return line.decode(encoding, errors=\"replace\")\n",
           "tests/test_text_files.py::test_refusal_names_file_line_and_remedy"),
    # raw text
    Mutant("GB18030 is believed of any line that is not UTF-8", "llama/clean/sources.py",
           "looks_so = 3 * lost > beyond and 2 * lost_there < lost and",
           "looks_so = 2 * lost_there < lost and",
           "tests/test_clean_sources.py::test_worked_examples_of_lines_in_a_wrong_encoding"),
    Mutant("a text goes to one side or the other by its blanks", "llama/clean/steps.py",
           '_sign(f"held out {letters_and_digits(text)}")',
           '_sign(f"held out {text}")',
           "tests/test_clean_command.py::test_property_a_split_takes_whole_texts_and_nothing_alike_is_on_both_sides"),
    Mutant("characters are converted one by one where a word is known", "llama/clean/han.py",
           "sorted(some, reverse=True)",
           "sorted(some)",
           "tests/test_han.py::test_worked_example_words_decide"),
    Mutant("a template in a template stays", "llama/clean/mediawiki.py",
           "DEEPEST = 100",
           "DEEPEST = 1",
           "tests/test_mediawiki.py::test_worked_example_nested_templates_go"),
    # heads of labels
    Mutant("a text's label is read at its first token", "llama/tasks/classification.py",
           "[False] * (len(ids) - 1) + [True]",
           "[True] + [False] * (len(ids) - 1)",
           "tests/test_classification.py::test_worked_example_the_last_id_is_read"),
    Mutant("rows of tags may break the rules", "llama/tasks/viterbi.py",
           "steps = np.where(follows, 0.0, -np.inf)",
           "steps = np.zeros(follows.shape)",
           "tests/test_viterbi.py::test_property_rows_of_any_length_are_legal"),
    Mutant("a segmenter is taken for one that finds entities", "llama/tasks/task_of.py",
           "task = words if set(head.labels) == set(words.labels) else NERTask(**options)",
           "task = NERTask(**options)",
           "tests/test_predict.py::test_two_ways_a_model_says_what_it_was_tuned_for"),
    # asked without training
    Mutant("an option is weighed with the id before it", "llama/zero_shot/multiple_choice.py",
           "self.tokenizer.encode_continuation(GAP[language] + self.said_of(example, letter))",
           "self.tokenizer.encode_continuation(ANSWER[language][-1] + GAP[language] + self.said_of(example, letter))",
           "tests/test_multiple_choice.py::test_worked_example_what_is_asked"),
    Mutant("the longest option loses", "llama/zero_shot/multiple_choice.py",
           '(1 if self.letters else len(example["options"][letter].encode()))',
           "1",
           "tests/test_multiple_choice.py::test_two_ways_scores_equal_those_of_plain_forward_passes"),
    Mutant("examples of other subjects are shown", "llama/zero_shot/multiple_choice.py",
           'shots = [each for each in self.examples if each.get("subject", "") == example.get("subject", "")]',
           "shots = list(self.examples)",
           "tests/test_multiple_choice.py::test_worked_example_what_is_asked"),
    Mutant("all or none right leaves no doubt", "llama/metrics/intervals.py",
           "(right * (count - right) / count + z * z / 4) ** 0.5",
           "(right * (count - right) / count) ** 0.5",
           "tests/test_multiple_choice.py::test_worked_example_error_bars"),
    Mutant("long vectors are near everything", "llama/word_vectors.py",
           "vectors[some] = functional.normalize(found.cpu(), dim=-1)",
           "vectors[some] = found.cpu()",
           "tests/test_word_vectors.py::test_two_ways_nearest_equals_a_sum_in_numpy"),
    # methods, and what is compared
    Mutant("Reptile goes all the way", "llama/methods/reptile.py",
           "parameter.copy_(old.lerp(parameter, rate))",
           "parameter.copy_(old.lerp(parameter, 1.0))",
           "tests/test_reptile.py::test_worked_example_a_step_goes_part_of_the_way"),
    Mutant("new labels learn from those before", "llama/methods/reptile.py",
           "parameter.copy_(value)",
           "pass",
           "tests/test_reptile.py::test_property_new_labels_are_learned_anew_each_time"),
    Mutant("the front is of the best alone", "llama/frontier/report.py",
           "if other.cost <= point.cost and other is not point",
           "if other is not point",
           "tests/test_frontier_report.py::test_worked_example_the_front"),
    Mutant("numbers of the law may be negative", "llama/frontier/power_law.py",
           "better = (found >= 0).all(-1) & (rest < squares)",
           "better = rest < squares",
           "tests/test_frontier_power_law.py::test_two_ways_the_bounded_solution_and_a_search"),
    Mutant("an entity stays where its characters were", "tests/ablation/perturb.py",
           "starts = [0, *accumulate(map(len, pieces))]",
           "starts = range(len(pieces) + 1)",
           "tests/test_method_ablation.py::test_property_spans_move_along_with_their_characters"),
    # files
    Mutant("Q4 blocks keep their offset", "weights/formats/gguf_blocks.py",
           'return _scaled(_flat(_planes(fields["q"], 4)), fields["d"], less=8)',
           'return _scaled(_flat(_planes(fields["q"], 4)), fields["d"])',
           "tests/test_gguf_blocks.py::test_worked_example_of_each_format"),
    Mutant("Q8 scale of 128 for 127", "weights/formats/gguf_blocks.py",
           "np.abs(x).max(-1) / np.float32(127)",
           "np.abs(x).max(-1) / np.float32(128)",
           "tests/test_gguf_blocks.py::test_worked_example_rounding"),
    Mutant("all parts are read from the first", "weights/formats/gguf_file.py",
           "np.memmap(info.path, np.uint8",
           "np.memmap(gguf.path, np.uint8",
           "tests/test_gguf_file.py::test_two_ways_a_model_in_parts_and_in_one_file"),
    Mutant("the scales of a K block are not fitted to it", "weights/formats/gguf_rounding.py",
           "d, dm = _refitted(points, d, dm, s, m, *sums)",
           "d, dm = d, dm",
           "tests/test_gguf_rounding.py::test_two_ways_no_larger_error_than_that_of_llama_cpp"),
    Mutant("rows are not reordered in reading GGUF", "weights/formats/plain_llama.py",
           "return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)",
           "return rows",
           "tests/test_gguf.py::test_two_ways_reordered_rows_give_equal_attention"),
    Mutant("rows are not reordered in writing Meta's files", "weights/formats/plain_llama.py",
           "return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)",
           "return rows",
           "tests/test_meta.py::test_two_ways_complex_rotation_of_neighbours"),
    Mutant("certificates of the other rotary order", "weights/certificate.py",
           "if reading.tells and reading.perplexity > LAYOUT * reading.other:",
           "if False:",
           "tests/test_certificate.py::test_refusal_of_rows_in_the_other_rotary_order"),
    Mutant("certificates do not look at files again", "weights/certificate.py",
           'if _sha256(folder / name) != facts["sha256"]:',
           "if False:",
           "tests/test_certificate.py::test_refusal_of_any_changed_byte"),
    # tokenizers
    Mutant("a mark that somebody types is a mark", "tokenizer/chat.py",
           "yield content, False, learn",
           "yield from _split_marks([(content, learn)])",
           "tests/test_text_stays_text.py::test_property_no_text_becomes_a_special_token"),
    Mutant("a text to classify may hold special tokens", "llama/generation.py",
           "ids = tokenizer.encode(text, allow_special=special)",
           "ids = tokenizer.encode(text, allow_special=True)",
           "tests/test_text_stays_text.py::test_property_no_text_becomes_a_special_token"),
    Mutant("words merge into a control token", "tokenizer/bpe.py",
           "if self._merged[rank] not in self._controls}",
           "}",
           "tests/test_text_stays_text.py::test_property_no_text_becomes_a_special_token"),
    Mutant("commands whose streams nobody guards", "llama/runtime/cli.py",
           "    terminal.guard()\n",
           "",
           "tests/test_terminal.py::test_property_no_door_hands_on_what_a_terminal_obeys"),
    Mutant("pairs merge whose halves have gone", "tokenizer/bpe_merge.py",
           "if j == end or symbols[i] != left or symbols[j] != right:",
           "if j == end or symbols[i] is None:",
           "tests/test_bpe.py::test_two_ways_agree_heap_and_search_anew"),
    # what ends a run, and what is refused before it begins
    Mutant("a step that is not finite is taken", "llama/trainer.py",
           "if math.isfinite(total) and math.isfinite(norm):",
           "if True:",
           "tests/test_trainer.py::test_two_ways_skipped_steps_change_nothing_and_are_counted_over_a_resume"),
    Mutant("all weights learn at the rate of an adapter", "llama/training/recipes.py",
           "recipe.lr[WAYS.index(way)]",
           "recipe.lr[0]",
           "tests/test_recipes.py::test_worked_example_a_task_brings_its_flags_and_each_way_its_rate"),
    Mutant("a run is held against its best evaluation", "llama/training/eval_history.py",
           'not self.last["loss"] <= self.before["loss"]',
           'not self.last["loss"] <= self.best',
           "tests/test_eval_history.py::test_worked_example_a_run_that_ends_worse_than_it_began"),
    Mutant("weights that are not finite are saved", "llama/training/nonfinite.py",
           "if bad := poisoned(learned):",
           "if False and (bad := poisoned(learned)):",
           "tests/test_trainer.py::test_property_what_is_poisoned_is_not_saved"),
    Mutant("the last gradient of the backward pass is blamed", "llama/training/nonfinite.py",
           "max(places, default=-1)",
           "min(places, default=-1)",
           "tests/test_nonfinite.py::test_worked_example_the_first_gradient_of_the_backward_pass"),
    Mutant("a temperature that is 0 in float32", "llama/runtime/ranges.py",
           "FACTORS = Range(1e-6, 1e6, off=True)",
           "FACTORS = Range(1e-323, 1e6, off=True)",
           "tests/test_sampling.py::test_refusal_of_bad_values"),
    Mutant("flags that would not fit are named", "llama/training/what_fits.py",
           "room = min(free, 0.9 * needed) / SURE",
           "room = needed",
           "tests/test_what_fits.py::test_property_named_flags_fit"),
    Mutant("a full disk is told as torch tells it", "weights/formats/torch_file.py",
           "raise failures[0]",
           "raise RuntimeError(\"unexpected pos 64 vs 0\")",
           "tests/test_torch_file.py::test_property_a_full_disk_leaves_the_older_file"),
    Mutant("a name is looked at without what lies beside it", "llama/runtime/destinations.py",
           'LONGEST = ".{}_epoch1000000.0a1b2c3d.partial"',
           'LONGEST = "{}"',
           "tests/test_destinations.py::test_refusal_names_that_cannot_be_written"),
    # what is fetched
    Mutant("the token goes along with every redirect", "weights/hub.py",
           "headers |= credentials if urlsplit(url)[:2] == home_of_token else {}",
           "headers |= credentials",
           "tests/test_hub.py::test_property_the_token_stays_with_the_hub"),
    Mutant("sums of a hub's files are not compared", "weights/download.py",
           "if (got := _sum(parts / file.part, file)) != file.sum:",
           "if (got := file.sum) != file.sum:",
           "tests/test_download.py::test_refusal_of_a_wrong_sum"),
    Mutant("a download that was cut begins anew", "weights/download.py",
           "before = come if come < file.size else 0",
           "before = 0",
           "tests/test_download.py::test_two_ways_in_pieces_and_at_once"),
    # what the tour breaks, page by page (docs/tour/)
    Mutant("the leftmost pair merges first", "tokenizer/bpe.py",
           "lambda left, right: ranks.get((left, right)),",
           "lambda left, right: 0 if (left, right) in ranks else None,",
           "tests/test_bpe.py::test_worked_example_the_merge_learned_first_goes_first"),
    Mutant("embeddings as long as the first transformer's", "llama/model.py",
           "x = self.embed_tokens(tokens)  ",
           "x = self.embed_tokens(tokens) * self.config.hidden_size**0.5  ",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("a norm without its weight", "llama/model.py",
           "return self.weight * x32.to(x.dtype)",
           "return x32.to(x.dtype)",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("a norm that takes the mean away", "llama/model.py",
           "x32 = x.float()\n        x32 = x32 * torch.rsqrt",
           "x32 = x.float() - x.float().mean(-1, keepdim=True)\n        x32 = x32 * torch.rsqrt",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("scores without 1/√K", "llama/model.py",
           "k.float().transpose(-2, -1) * K**-0.5",
           "k.float().transpose(-2, -1)",
           "tests/test_model.py::test_two_ways_fused_attention_equals_its_definition"),
    Mutant("GELU for SiLU", "llama/model.py",
           "functional.silu(self.gate_proj(x))",
           "functional.gelu(self.gate_proj(x))",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("a block that forgets what came in", "llama/model.py",
           "x = x + self.self_attn(self.input_layernorm(x)",
           "x = self.self_attn(self.input_layernorm(x)",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("no norm before the head", "llama/model.py",
           "return self.norm(x[:, -T:])",
           "return x[:, -T:]",
           "tests/test_model.py::test_two_ways_whole_model_equals_reference"),
    Mutant("a temperature that multiplies", "llama/sampling.py",
           "logits.amax(-1, keepdim=True)) / config.temperature",
           "logits.amax(-1, keepdim=True)) * config.temperature",
           "tests/test_sampling.py::test_worked_example_temperature_one_half_squares_the_odds"),
    Mutant("a gradient of the norm that leaves out rms(x)", "llama/fast/custom_autograd.py",
           "return dn.addcmul_(n, mean, value=-1).mul_(factor)",
           "return dn.mul_(factor)",
           "tests/test_custom_autograd.py::test_two_ways_gradients_equal_autograd"),
    Mutant("masters as coarse as what they stand behind", "llama/training/optimizer.py",
           "            parameter.copy_(master)\n",
           "            parameter.copy_(master)\n            master.copy_(parameter)\n",
           "tests/test_optimizer.py::test_two_ways_small_updates_add_up_in_masters_and_vanish_in_bfloat16"),
    Mutant("an adapter that begins as noise", "llama/lora/layers.py",
           "self.lora_B = nn.Parameter(torch.zeros(",
           "self.lora_B = nn.Parameter(torch.randn(",
           "tests/test_lora.py::test_property_a_new_adapter_changes_nothing"),
    Mutant("merged without α/R", "llama/lora/layers.py",
           "return self.scale * (B.float() @ A.float())",
           "return B.float() @ A.float()",
           "tests/test_lora_layers.py::test_two_ways_merged_equals_beside"),
    Mutant("one scale for a whole matrix", "llama/quantization/rounding.py",
           "scale = _eight_bits_up(weight.abs().amax(-1) / 127)",
           "scale = _eight_bits_up(weight.abs().amax().expand(len(weight)) / 127)",
           "tests/test_rounding.py::test_property_a_rows_scale_is_one_that_bfloat16_holds_and_no_weight_is_cut_off"),
    Mutant("a guess that was refused may come again", "llama/decoding/speculative.py",
           "rest[token] = 0",
           "rest[token] *= 1",
           "tests/test_speculative.py::test_worked_example_what_is_left_when_a_guess_fails"),
    Mutant("sums that stay at home", "llama/runtime/distributed.py",
           "return _reduced(numbers, dist.ReduceOp.SUM)",
           "return list(numbers)",
           "tests/test_distributed.py::test_two_ways_gradients_and_ten_steps_equal_one_process"),
    Mutant("a balance of choices alone", "llama/relatives/mixture_of_experts.py",
           "return E * (f * scores.mean(0)).sum()",
           "return E * (f * f).sum()",
           "tests/test_mixture_of_experts.py::test_property_balance_has_a_gradient"),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=(), help="those whose names contain one of these")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.only or any(part in mutant.name for part in arguments.only)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        before = run(copy, *{mutant.test for mutant in chosen})
        if before.returncode:
            sys.exit(f"{before.stdout[-2000:]}\na named test fails in the program as it is; repair that first")
        survived = 0
        print(row("mutant", "file", "test that must fail", "verdict") + "\n" + row(*["---"] * 4), flush=True)
        for mutant in chosen:
            failed = run(mutated(copy, mutant), mutant.test).returncode == 1
            (copy / mutant.file).write_text((HOME / mutant.file).read_text(encoding="utf-8"), encoding="utf-8")
            survived += not failed
            verdict = "caught" if failed else "SURVIVED"
            print(row(mutant.name, mutant.file, mutant.test.removeprefix("tests/"), verdict), flush=True)
    print(f"\nmutants: {len(chosen) - survived} caught, {survived} survived, {time.monotonic() - started:.0f} s")
    return 1 if survived else 0


def copied(folder: Path) -> Path:
    """The program and its tests, without models and whatever else has been made here."""
    unwanted = shutil.ignore_patterns("__pycache__", ".cache", *(
        path.name for path in HOME.glob("weights/*") if path.is_dir() and not (path / "__init__.py").exists()))
    for name in COPIED:
        source = HOME / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=unwanted)
        else:
            shutil.copy(source, folder / name)
    return folder


def mutated(copy: Path, mutant: Mutant) -> Path:
    """Break one place. Raises ValueError if there is no such place, or more than one."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"mutant '{mutant.name}': its text stands {text.count(mutant.old)} times in {mutant.file}, "
                         "not once; let it follow the code")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return copy


def run(copy: Path, *tests: str) -> subprocess.CompletedProcess:
    """pytest on these tests; its exit status is 0 if all passed, 1 if one failed, more if it could not run them."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *sorted(tests)]
    return subprocess.run(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          encoding="utf-8")


def row(name: str, file: str, test: str, verdict: str) -> str:
    return f"| {name:<48} | {file:<29} | {test:<94} | {verdict:<8} |"


if __name__ == "__main__":
    sys.exit(main())
